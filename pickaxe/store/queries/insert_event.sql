INSERT INTO pickaxe.event (key, scope, payload) VALUES (:key, :scope, :payload)
