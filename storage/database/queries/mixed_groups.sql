-- The 20 latest groups with both CORRECT and INCORRECT rollouts, and what each sibling searched for.
SELECT
    run,
    iteration,
    question,
    golden_answers,
    num_correct,
    num_incorrect,
    answers,
    queries_by_rollout,
    group_id
FROM v_groups
WHERE run = $run AND num_correct > 0 AND num_incorrect > 0
ORDER BY iteration DESC, group_id
LIMIT 20
