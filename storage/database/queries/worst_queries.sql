-- The 20 queries that the teacher disfavours most, among those that the student would write itself: each token's log-ratio
-- counts by the student's probability of it, since garbled queries, which the student finds improbable too, have the
-- largest ratios and teach little. Of the same query to the same question the first is shown.
SELECT
    run,
    iteration,
    question,
    query,
    label,
    hit,
    round(weighted_log_ratio, 3) AS weighted_log_ratio,
    round(mean_log_ratio, 3) AS mean_log_ratio,
    round(mean_jsd, 4) AS mean_jsd,
    rollout_id
FROM v_queries
WHERE run = $run AND weighted_log_ratio IS NOT NULL
QUALIFY row_number() OVER (
    PARTITION BY question, query ORDER BY v_queries.weighted_log_ratio, iteration, rollout_id, turn
) = 1
ORDER BY v_queries.weighted_log_ratio, rollout_id, turn
LIMIT 20
