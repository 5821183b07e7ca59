-- A rollout as text, piece by piece: who wrote it and what ($rollout: a rollout_id).
WITH pieces AS (
    SELECT run, iteration, rollout_id, -1 AS turn, 0 AS place, 'question' AS author, question AS text
    FROM v_rollouts
    UNION ALL
    SELECT run, iteration, rollout_id, turn, 0, 'policy', text
    FROM turns
    UNION ALL
    SELECT run, iteration, rollout_id, turn, 1, 'environment', observation_text
    FROM turns
    WHERE observation_text IS NOT NULL
)

SELECT run, iteration, nullif(turn, -1) AS turn, author, text
FROM pieces
WHERE run = $run AND rollout_id = $rollout
ORDER BY iteration, pieces.turn, place
