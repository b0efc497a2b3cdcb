-- Where a run is, and what is new in its log for a process that has seen it up to arrival :head and commit :epoch:
-- outcomes, steps that others have asked for since, and the calls of gathers that have ended since.
SELECT r.state AS run_state, r.epoch, r.head, r.wake, r.dispatches, r.cancel_seq, extract(epoch FROM r.cancel_at)::float8 AS cancelled,
    r.cancel_reason, r.timed_out, extract(epoch FROM clock_timestamp())::float8 AS now, n.*
FROM pickaxe.run r LEFT JOIN LATERAL (
    SELECT 'step' AS tag, key, kind, name, digest, state, seq, extract(epoch FROM finished_at)::float8 AS at,
        output, error, group_key, ordinal, attempt, false AS later
    FROM pickaxe.step WHERE run_id = r.id AND chapter = r.chapter AND (
        seq > :head OR born > :epoch OR group_key IN (
            SELECT g.key FROM pickaxe.step g
            WHERE g.run_id = r.id AND g.chapter = r.chapter AND g.kind = 'gather' AND g.seq > :head))
    UNION ALL
    SELECT 'signal', '', '', name, '', '', seq, extract(epoch FROM created_at)::float8, payload,
        NULL, NULL, NULL, 0, false
    FROM pickaxe.signal WHERE run_id = r.id AND chapter = r.chapter AND seq > :head
) n ON true
WHERE r.id = :run AND r.chapter = :chapter
