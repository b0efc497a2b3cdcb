-- The log of a run's current chapter: its steps, and the signals it has not left behind.
SELECT 'step' AS tag, key, kind, name, digest, state, seq, extract(epoch FROM finished_at)::float8 AS at,
    output, error, group_key, ordinal, attempt,
    -- Once it has been dispatched, its due time only says when to do that again. What a person must resolve has none.
    state = 'unknown' AND due IS NULL OR dispatches = 0 AND due IS NOT NULL AND due > clock_timestamp() AS later
FROM pickaxe.step WHERE run_id = :run AND chapter = :chapter
UNION ALL
SELECT 'signal', '', '', name, '', '', seq, extract(epoch FROM created_at)::float8, payload, NULL, NULL, NULL, 0, false
FROM pickaxe.signal WHERE run_id = :run AND chapter = :chapter
