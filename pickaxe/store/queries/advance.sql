SELECT * FROM pickaxe.advance(
    :run, :key, :attempt, :step_owner, :outcome, :step_output, :step_error, to_timestamp(:at),
    :epoch, :head, :wake, :redispatch, :state, :new_head, :output, :error, :reason, :published,
    to_timestamp(:started), :owner, CAST(:steps AS json), CAST(:children AS json),
    :cancels, :settled_keys, :settled_seqs, :carried)
