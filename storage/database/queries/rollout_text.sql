-- A rollout as text: who wrote what, the credit of its queries, and what it earned ($rollout: a rollout_id).
WITH texts AS (
    SELECT run, iteration, rollout_id, -1 AS turn, 0 AS part, 'question' AS author, question AS text
    FROM v_rollouts
    UNION ALL
    SELECT run, iteration, rollout_id, -1, 1, 'golden answers', array_to_string(golden_answers, ' / ')
    FROM v_rollouts
    UNION ALL
    SELECT run, iteration, rollout_id, turn, 0, 'policy', text
    FROM turns
    UNION ALL
    SELECT run, iteration, rollout_id, turn, 1, 'environment', observation_text
    FROM turns
    WHERE observation_text IS NOT NULL
    UNION ALL
    SELECT
        run, iteration, rollout_id, 1000000, 0, 'score',
        format('{}: reward {:.3f}, advantage {:+.3f}, EM {:.0f}, F1 {:.2f}', outcome, reward, advantage, em, f1)
    FROM v_rollouts
)

SELECT
    t.run,
    t.iteration,
    CASE WHEN t.turn BETWEEN 0 AND 999999 THEN t.turn END AS turn,
    t.author,
    CASE WHEN t.author = 'policy' THEN round(c.mean_log_ratio, 3) END AS mean_log_ratio,
    t.text
FROM texts AS t
LEFT JOIN v_query_credit AS c
    ON c.run = t.run AND c.iteration = t.iteration AND c.rollout_id = t.rollout_id AND c.turn = t.turn
WHERE t.run = $run AND t.rollout_id = $rollout
ORDER BY t.iteration, t.turn, t.part
