SELECT * FROM pickaxe.set_step_aside(
    :run, :key, :attempt, :owner, :state, :due_in, :spared, :error, :reason, :history, :overdue, :redispatch)
