UPDATE pickaxe.step SET due = NULL WHERE run_id = :run AND key = :key AND state = 'waiting'
