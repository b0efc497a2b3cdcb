SELECT * FROM pickaxe.wake(:run, :redispatch)
