-- The runs of an agent that were enqueued under these idempotency keys.
SELECT idempotency_key, id FROM pickaxe.run WHERE agent = :agent AND idempotency_key = ANY (:keys)
