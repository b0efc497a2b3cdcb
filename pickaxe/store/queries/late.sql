-- Where messages are late: the queues, and the priorities there, of what was sent and should have been taken by now.
SELECT queue, priority FROM pickaxe.run
WHERE due <= clock_timestamp() AND sent_at IS NOT NULL AND state = 'ready'
UNION
SELECT queue, priority FROM pickaxe.step
WHERE due <= clock_timestamp() AND sent_at IS NOT NULL AND state IN ('ready', 'unknown')
