-- Evaluations in the order of training, one row each.
SELECT
    run,
    updates_done,
    dataset,
    split,
    alpha,
    num_questions,
    round(greedy_em, 3) AS greedy_em,
    round(sampled_em, 3) AS sampled_em,
    round(greedy_f1, 3) AS greedy_f1,
    round(sampled_f1, 3) AS sampled_f1,
    round(greedy_search_quality, 3) AS search_quality,
    round(greedy_searches_per_rollout, 2) AS searches
FROM v_learning_curve
WHERE run = $run
ORDER BY dataset, split, updates_done
