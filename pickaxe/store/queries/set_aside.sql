INSERT INTO pickaxe.dead_letter (reason, body, headers) VALUES (:reason, :body, :headers) RETURNING id
