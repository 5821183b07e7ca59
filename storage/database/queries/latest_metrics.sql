-- Everything about the latest iteration.
SELECT *
FROM v_iterations
WHERE run = $run AND reward_mean IS NOT NULL
ORDER BY iteration DESC
LIMIT 1
