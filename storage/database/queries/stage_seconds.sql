-- Seconds of each stage, one row per iteration.
SELECT
    run,
    iteration,
    round(sample_s, 3) AS sample_s,
    round(score_s, 3) AS score_s,
    round(hindsight_s, 3) AS hindsight_s,
    round(teacher_s, 3) AS teacher_s,
    round(update_s, 3) AS update_s,
    round(evaluate_s, 3) AS evaluate_s,
    round(total_s, 3) AS total_s
FROM v_stage_seconds
WHERE run = $run
ORDER BY iteration
