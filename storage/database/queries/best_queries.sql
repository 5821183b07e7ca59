-- The 20 queries that the teacher favours most over the student, by mean log-ratio of their tokens.
SELECT
    run,
    iteration,
    question,
    query,
    label,
    hit,
    round(mean_log_ratio, 3) AS mean_log_ratio,
    round(mean_jsd, 4) AS mean_jsd,
    rollout_id
FROM v_queries
WHERE run = $run AND mean_log_ratio IS NOT NULL
ORDER BY v_queries.mean_log_ratio DESC, rollout_id, turn
LIMIT 20
