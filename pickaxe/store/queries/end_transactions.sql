-- Ends what attempts that are over have left open: a frozen process would keep its locks on the application's rows.
SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.application_name LIKE ANY (CAST(:names AS text[]))
