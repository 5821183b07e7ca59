-- The parts of the reward as training went on, one row per iteration and part.
SELECT
    run,
    iteration,
    part,
    num_rollouts,
    round(value_mean, 4) AS value_mean,
    round(value_std, 4) AS value_std,
    round(value_min, 4) AS value_min,
    round(value_max, 4) AS value_max
FROM v_reward_parts
WHERE run = $run
ORDER BY iteration, part
