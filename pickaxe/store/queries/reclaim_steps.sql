SELECT * FROM pickaxe.reclaim(:batch, :limit, :together, :redispatch)
