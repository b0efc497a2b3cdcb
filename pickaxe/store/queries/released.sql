-- What a gather's cap has just let go: calls, and child runs that had been held.
SELECT s.run_id, s.key, s.kind, s.name, s.queue, s.priority, s.attempt, s.options, s.input, r.root,
    c.id AS child, c.agent, c.queue AS child_queue, c.priority AS child_priority
FROM pickaxe.step s JOIN pickaxe.run r ON r.id = s.run_id
    LEFT JOIN pickaxe.run c ON c.parent_run = s.run_id AND c.parent_step = s.key
WHERE s.run_id = :run AND s.key = ANY (:keys)
