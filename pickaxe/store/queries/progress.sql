UPDATE pickaxe.step SET progress = coalesce(:progress, progress),
    due = CASE WHEN due IS NULL THEN NULL
        ELSE clock_timestamp() + make_interval(secs => (options::jsonb->>'timeout')::float8 + :grace) END
WHERE run_id = :run AND key = :key AND state = 'running' AND attempt = :attempt AND owner = :owner
RETURNING key
