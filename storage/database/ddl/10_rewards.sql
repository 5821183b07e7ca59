CREATE TABLE reward_parts (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    rollout_id VARCHAR NOT NULL,
    part VARCHAR NOT NULL,
    value DOUBLE NOT NULL,
    PRIMARY KEY (run, iteration, rollout_id, part)
);
COMMENT ON TABLE reward_parts IS 'One row a rollout and part of its reward.';
COMMENT ON COLUMN reward_parts.rollout_id IS 'Id of the rollout.';

CREATE VIEW v_reward_parts AS
SELECT
    run,
    iteration,
    part,
    count(*) AS num_rollouts,
    avg(value) AS value_mean,
    coalesce(stddev_samp(value), 0) AS value_std,
    min(value) AS value_min,
    max(value) AS value_max
FROM reward_parts
GROUP BY run, iteration, part;
COMMENT ON VIEW v_reward_parts IS 'The parts of the reward, one row an iteration and part: the learning curve of what is rewarded.';
COMMENT ON COLUMN v_reward_parts.num_rollouts IS 'Rollouts that have it.';
COMMENT ON COLUMN v_reward_parts.value_mean IS 'Mean over these rollouts.';
COMMENT ON COLUMN v_reward_parts.value_std IS 'Unbiased standard deviation; 0 for a single rollout.';
COMMENT ON COLUMN v_reward_parts.value_min IS 'Lowest.';
COMMENT ON COLUMN v_reward_parts.value_max IS 'Highest.';
