"""How bytes reach the clients: thin shells around the pure parts, and the codecs of their wires.

handshake   pure: a request's headers -> whether it becomes a WebSocket
rfc6455     pure: bytes of a WebSocket -> events; messages -> bytes
"""
