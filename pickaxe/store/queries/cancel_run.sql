SELECT * FROM pickaxe.cancel_run(:run, :reason, :timed_out, :force, :error, :redispatch)
