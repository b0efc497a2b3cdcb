-- Event waits whose look-back has not been done: their process died between the two statements.
SELECT run_id, key FROM pickaxe.step
WHERE due <= clock_timestamp() AND sent_at IS NULL AND state = 'waiting' AND kind = 'event' LIMIT :batch
