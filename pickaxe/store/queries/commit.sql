SELECT * FROM pickaxe.commit_reduction(
    :run, :epoch, :head, :wake, :redispatch, :state, :new_head, :output, :error, :reason, :published,
    to_timestamp(:started), :owner, CAST(:steps AS json), CAST(:children AS json),
    :cancels, :settled_keys, :settled_seqs, :carried, 0)
