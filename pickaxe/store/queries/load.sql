-- What a reduction needs to know of a run, and its log if it is open. The time is the database's.
SELECT r.id, r.agent, r.version, r.state, r.chapter, r.epoch, r.head, r.wake, r.queue, r.priority, r.input, r.root,
    r.parent_run, extract(epoch FROM r.chapter_at)::float8 AS started, r.cancel_seq,
    extract(epoch FROM r.cancel_at)::float8 AS cancelled, r.cancel_reason, r.timed_out, r.dispatches,
    extract(epoch FROM clock_timestamp())::float8 AS now,
    CASE WHEN r.state IN ('ready', 'waiting') THEN pickaxe.news(r.id, r.chapter, -1, -1, '{}') END AS news
FROM pickaxe.run r WHERE r.id = :run
