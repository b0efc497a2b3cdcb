SELECT * FROM pickaxe.settle(:run, :key, :origin, :attempt, :owner, :state, :output, :error, :redispatch)
