-- What is new in a run's log for a process that has seen it up to arrival :head and commit :epoch: outcomes, steps
-- that others have asked for since, and the calls of gathers that have ended since.
SELECT 'step' AS tag, key, kind, name, digest, state, seq, extract(epoch FROM finished_at)::float8 AS at,
    output, error, group_key, ordinal, attempt, false AS later
FROM pickaxe.step WHERE run_id = :run AND chapter = :chapter AND (
    seq > :head OR born > :epoch OR group_key IN (
        SELECT g.key FROM pickaxe.step g
        WHERE g.run_id = :run AND g.chapter = :chapter AND g.kind = 'gather' AND g.seq > :head))
UNION ALL
SELECT 'signal', '', '', name, '', '', seq, extract(epoch FROM created_at)::float8, payload, NULL, NULL, NULL, 0, false
FROM pickaxe.signal WHERE run_id = :run AND chapter = :chapter AND seq > :head
