UPDATE pickaxe.worker SET ended_at = clock_timestamp(), ended = :ended WHERE id = :id AND ended_at IS NULL
RETURNING id
