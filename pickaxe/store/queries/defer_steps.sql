-- Calls that must wait for their limit: rows with a due time, which is their slot once it is granted.
UPDATE pickaxe.step s SET
    due = clock_timestamp() + make_interval(secs => n.wait), sent_at = NULL, granted = n.granted, reason = n.reason
FROM json_to_recordset(CAST(:steps AS json)) AS n(
    run uuid, key text, attempt integer, wait double precision, granted boolean, reason text)
WHERE s.run_id = n.run AND s.key = n.key AND s.state = 'ready' AND s.attempt = n.attempt
RETURNING s.key
