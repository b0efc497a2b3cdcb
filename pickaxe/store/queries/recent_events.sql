SELECT payload FROM pickaxe.event
WHERE key = :key AND scope = :scope AND created_at >= :since - make_interval(secs => :within)
ORDER BY created_at, id
