INSERT INTO pickaxe.dead_letter (reason, body, headers, queue, message)
VALUES (:reason, :body, :headers, :queue, :message) RETURNING id
