-- What workers have yet to take: calls and runs by what and where they are, how many, since when, and the first.
SELECT 'tool' AS kind, s.name, s.queue, count(*) AS count, min(s.created_at) AS since,
    (array_agg(s.run_id ORDER BY s.created_at))[1] AS run, (array_agg(s.key ORDER BY s.created_at))[1] AS key
FROM pickaxe.step s
WHERE s.kind = 'tool' AND (
    s.state = 'ready' AND s.due IS NOT NULL OR s.state = 'blocked' OR s.state = 'unknown' AND s.due IS NOT NULL)
GROUP BY s.name, s.queue
UNION ALL
SELECT 'agent', r.agent, r.queue, count(*), min(r.created_at), (array_agg(r.id ORDER BY r.created_at))[1], NULL
FROM pickaxe.run r WHERE r.state = 'ready' AND r.due IS NOT NULL
GROUP BY r.agent, r.queue
ORDER BY since
