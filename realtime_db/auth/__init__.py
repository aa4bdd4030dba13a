"""Who a client is and what it may do: between the transports above and the database below.

tokens      pure: a token and the keys -> its claims, or the protocol's texts for what is wrong
keys        reads the keys from files and URLs, and again when a token names a new one
policies    asks the policies on `realtime.messages` as the user, and remembers the answers
"""
