-- How much of the teacher's lift on a query is copying: a run beside replays that change its own query in the block.
-- These are replays with hindsight.own_query 'drop' and 'paraphrase', over the queries that all of them have; lift is the
-- mean log-ratio, teacher minus student, in nats. A replay that changes something else too is left out, and of several of
-- a kind the latest counts.
WITH related AS (
    SELECT
        run,
        coalesce(settings_json::JSON ->> '$.hindsight.own_query', 'keep') AS own_query,
        created_at
    FROM runs
    WHERE run = $run OR (
        kind = 'replay' AND source = $run
        AND json_merge_patch(settings_json::JSON -> '$.hindsight', '{"own_query": "keep"}') = json_merge_patch(
            (SELECT r.settings_json::JSON -> '$.hindsight' FROM runs AS r WHERE r.run = $run), '{"own_query": "keep"}'
        )
    )
),

chosen AS (
    SELECT run, own_query FROM related
    QUALIFY row_number() OVER (PARTITION BY own_query ORDER BY run = $run DESC, created_at DESC) = 1
),

compared AS (
    SELECT c.run, own_query, outcome, c.mean_log_ratio
    FROM v_query_credit AS c
    JOIN chosen USING (run)
    JOIN rollouts AS r USING (run, iteration, rollout_id)
    QUALIFY count(*) OVER (PARTITION BY c.iteration, c.rollout_id, c.turn) = (SELECT count(*) FROM chosen)
)

SELECT
    run,
    own_query,
    count(*) AS queries,
    round(avg(mean_log_ratio), 4) AS lift,
    round(avg(mean_log_ratio) FILTER (outcome = 'CORRECT'), 4) AS lift_correct,
    round(avg(mean_log_ratio) FILTER (outcome = 'INCORRECT'), 4) AS lift_incorrect,
    round(
        avg(mean_log_ratio) FILTER (outcome = 'CORRECT') - avg(mean_log_ratio) FILTER (outcome = 'INCORRECT'), 4
    ) AS lift_of_outcome
FROM compared
GROUP BY run, own_query
ORDER BY array_position(['keep', 'drop', 'paraphrase'], own_query)
