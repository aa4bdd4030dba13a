-- realtime_db: what `realtime-db migrate` installed, unadopted. Frozen by `make release`; never edited.

