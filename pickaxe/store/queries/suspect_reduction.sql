SELECT * FROM pickaxe.suspect_reduction(:run, :epoch, :owner, :limit, :patience, :reason)
