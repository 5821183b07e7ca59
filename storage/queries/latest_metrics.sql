-- Everything about the latest iteration of each run.
SELECT *
FROM v_iterations
WHERE reward_mean IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY run ORDER BY iteration DESC) = 1
ORDER BY run
