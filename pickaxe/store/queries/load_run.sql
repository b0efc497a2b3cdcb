-- What a reduction needs to know of a run. The time is the database's.
SELECT r.*, extract(epoch FROM r.chapter_at)::float8 AS started, extract(epoch FROM r.cancel_at)::float8 AS cancelled,
    extract(epoch FROM clock_timestamp())::float8 AS now
FROM pickaxe.run r WHERE r.id = :run
