-- Where a run is, and what is new in its log for a process that has seen it up to arrival :head and commit :epoch,
-- and how its open steps :inline are.
SELECT r.state, r.epoch, r.head, r.wake, r.dispatches, r.cancel_seq,
    extract(epoch FROM r.cancel_at)::float8 AS cancelled, r.cancel_reason, r.timed_out,
    extract(epoch FROM clock_timestamp())::float8 AS now,
    CASE WHEN r.epoch <> :epoch OR r.wake <> :head OR CAST(:inline AS text[]) <> '{}'
        THEN pickaxe.news(r.id, r.chapter, :head, :epoch, CAST(:inline AS text[])) END AS news
FROM pickaxe.run r WHERE r.id = :run AND r.chapter = :chapter
