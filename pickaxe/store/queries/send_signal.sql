-- A signal, and what the run's message says if this has woken it.
SELECT t.state, t.woken, r.agent, r.queue, r.priority, r.root, r.wake + 1 AS wake
FROM pickaxe.send_signal(:run, :name, :payload, :key, :redispatch) t LEFT JOIN pickaxe.run r ON r.id = :run
