SELECT * FROM pickaxe.send_signal(:run, :name, :payload, :key, :redispatch)
