CREATE VIEW v_stage_seconds AS
SELECT
    run,
    iteration,
    sum(duration_s) FILTER (stage = 'sample') AS sample_s,
    sum(duration_s) FILTER (stage = 'score') AS score_s,
    sum(duration_s) FILTER (stage = 'hindsight') AS hindsight_s,
    sum(duration_s) FILTER (stage = 'teacher') AS teacher_s,
    sum(duration_s) FILTER (stage = 'update') AS update_s,
    sum(duration_s) FILTER (stage = 'evaluate') AS evaluate_s,
    sum(duration_s) AS total_s
FROM stages
WHERE status = 'done'
GROUP BY run, iteration;
COMMENT ON VIEW v_stage_seconds IS 'Seconds of each done stage, one row an iteration.';
COMMENT ON COLUMN v_stage_seconds.sample_s IS 'Seconds of the sample stage.';
COMMENT ON COLUMN v_stage_seconds.score_s IS 'Seconds of the score stage.';
COMMENT ON COLUMN v_stage_seconds.hindsight_s IS 'Seconds of the hindsight stage.';
COMMENT ON COLUMN v_stage_seconds.teacher_s IS 'Seconds of the teacher stage.';
COMMENT ON COLUMN v_stage_seconds.update_s IS 'Seconds of the update stage.';
COMMENT ON COLUMN v_stage_seconds.evaluate_s IS 'Seconds of the evaluate stage.';
COMMENT ON COLUMN v_stage_seconds.total_s IS 'Seconds of all stages.';

CREATE VIEW v_sampling AS
SELECT run, iteration, stage, unnest(sampling)
FROM stages
WHERE status = 'done' AND sampling IS NOT NULL;
COMMENT ON VIEW v_sampling IS 'What a vLLM engine did, one row a stage that it sampled for.';
COMMENT ON COLUMN v_sampling.stage IS 'sample or evaluate.';

CREATE VIEW v_retrieval AS
SELECT run, iteration, stage, unnest(retrieval)
FROM stages
WHERE status = 'done' AND retrieval IS NOT NULL;
COMMENT ON VIEW v_retrieval IS 'What the retriever did, one row a stage that searches; a resumed stage counts its last attempt.';
COMMENT ON COLUMN v_retrieval.stage IS 'sample or evaluate.';

CREATE VIEW v_learning_curve AS
SELECT
    run,
    updates_done,
    dataset,
    split,
    any_value(further) AS further,
    any_value(alpha) AS alpha,
    max(num_questions) AS num_questions,
    max(em) FILTER (mode = 'greedy') AS greedy_em,
    max(em) FILTER (mode = 'sampled') AS sampled_em,
    max(f1) FILTER (mode = 'greedy') AS greedy_f1,
    max(f1) FILTER (mode = 'sampled') AS sampled_f1,
    max(search_quality) FILTER (mode = 'greedy') AS greedy_search_quality,
    max(searches_per_rollout) FILTER (mode = 'greedy') AS greedy_searches_per_rollout,
    max(valid_share) FILTER (mode = 'greedy') AS greedy_valid_share
FROM evaluations
LEFT JOIN (
    SELECT run, iteration AS updates_done, max_by(alpha, step) AS alpha FROM update_metrics GROUP BY run, iteration
) AS updates USING (run, updates_done)
GROUP BY run, updates_done, dataset, split;
COMMENT ON VIEW v_learning_curve IS 'Evaluations side by side, one row a number of updates done and data set.';
COMMENT ON COLUMN v_learning_curve.further IS 'True for a set of evaluation.sets, besides the one that the run is evaluated on.';
COMMENT ON COLUMN v_learning_curve.num_questions IS 'Questions.';
COMMENT ON COLUMN v_learning_curve.alpha IS 'Weight of the distillation term in the last update before; 0: plain GRPO.';
COMMENT ON COLUMN v_learning_curve.greedy_em IS 'Mean exact match, greedy decoding.';
COMMENT ON COLUMN v_learning_curve.sampled_em IS 'Mean exact match, sampled decoding.';
COMMENT ON COLUMN v_learning_curve.greedy_f1 IS 'Mean token F1, greedy decoding.';
COMMENT ON COLUMN v_learning_curve.sampled_f1 IS 'Mean token F1, sampled decoding.';
COMMENT ON COLUMN v_learning_curve.greedy_search_quality IS 'Share of passages that contain a golden answer, greedy.';
COMMENT ON COLUMN v_learning_curve.greedy_searches_per_rollout IS 'Mean number of searches, greedy.';
COMMENT ON COLUMN v_learning_curve.greedy_valid_share IS 'Share of rollouts with a valid format, greedy.';

CREATE VIEW v_labels AS
SELECT run, iteration, group_id, rollout_index, any_value(label) AS label
FROM hindsight_attempts
WHERE sampled_in IS NULL
GROUP BY run, iteration, group_id, rollout_index;
COMMENT ON VIEW v_labels IS 'The label that each rollout has in its group''s hindsight blocks.';
COMMENT ON COLUMN v_labels.label IS 'CORRECT or INCORRECT, as its group''s blocks show it; empty when the labels are switched off.';

CREATE VIEW v_rollouts AS
SELECT
    r.run,
    r.iteration,
    r.rollout_id,
    r.group_id,
    r.rollout_index,
    q.question,
    r.answer,
    q.golden_answers,
    r.queries,
    r.em,
    r.f1,
    r.reward,
    r.advantage,
    r.outcome,
    l.label,
    r.valid_format,
    r.num_golden_hits,
    r.num_completion_tokens,
    r.question_key
FROM rollouts AS r
LEFT JOIN questions AS q USING (run, question_key)
LEFT JOIN v_labels AS l
    ON l.run = r.run AND l.iteration = r.iteration
    AND l.group_id = r.group_id AND l.rollout_index = r.rollout_index;
COMMENT ON VIEW v_rollouts IS 'Rollouts with their question, golden answers and hindsight label, one row a rollout.';

CREATE VIEW v_token_credit AS
SELECT
    c.*,
    r.outcome,
    list_contains(t.query_positions, c.position - t.token_start) AS in_query,
    coalesce(g.gates[list_position(g.positions, c.position)], 1) AS gate,
    count(*) OVER (PARTITION BY c.run, c.iteration, c.rollout_id) AS num_rollout_tokens
FROM query_credit AS c
JOIN rollouts AS r USING (run, iteration, rollout_id)
JOIN turns AS t
    ON t.run = c.run AND t.iteration = c.iteration AND t.rollout_id = c.rollout_id AND t.turn = c.turn
LEFT JOIN teacher_targets AS g
    ON g.run = c.run AND g.iteration = c.iteration AND g.rollout_id = c.rollout_id;
COMMENT ON VIEW v_token_credit IS 'query_credit with what became of the rollout, one row a distilled token.';
COMMENT ON COLUMN v_token_credit.in_query IS 'True when the token is a query token; false only where others are distilled too.';
COMMENT ON COLUMN v_token_credit.gate IS 'What distillation.gate leaves of the token in L_SD, 0 to 1.';
COMMENT ON COLUMN v_token_credit.num_rollout_tokens IS 'Distilled tokens of its rollout.';

CREATE VIEW v_query_credit AS
SELECT
    run,
    iteration,
    rollout_id,
    turn,
    count(*) AS num_tokens,
    avg(teacher_logprob - student_logprob) AS mean_log_ratio,
    avg(exp(student_logprob) * (teacher_logprob - student_logprob)) AS weighted_log_ratio,
    avg(jsd) AS mean_jsd
FROM v_token_credit
WHERE in_query
GROUP BY run, iteration, rollout_id, turn;
COMMENT ON VIEW v_query_credit IS 'What the teacher says of each query, averaged over its tokens.';
COMMENT ON COLUMN v_query_credit.num_tokens IS 'Query tokens that the teacher saw.';
COMMENT ON COLUMN v_query_credit.mean_log_ratio IS
    'Mean of teacher minus student log-probability over the query''s tokens, nats; above 0: the teacher favours it.';
COMMENT ON COLUMN v_query_credit.weighted_log_ratio IS
    'Mean over the query''s tokens of the student''s probability times the log-ratio, nats; small for what the student would hardly write.';
COMMENT ON COLUMN v_query_credit.mean_jsd IS 'Mean Jensen-Shannon divergence over the query''s tokens, nats.';

CREATE VIEW v_queries AS
SELECT
    s.run,
    s.iteration,
    s.rollout_id,
    s.turn,
    s.query,
    r.outcome,
    l.label,
    s.hit,
    c.mean_log_ratio,
    c.weighted_log_ratio,
    c.mean_jsd,
    c.num_tokens,
    s.num_hits,
    s.titles,
    q.question,
    q.golden_answers,
    r.f1,
    r.advantage,
    s.group_id
FROM searches AS s
JOIN rollouts AS r USING (run, iteration, rollout_id)
LEFT JOIN questions AS q USING (run, question_key)
LEFT JOIN v_labels AS l
    ON l.run = s.run AND l.iteration = s.iteration
    AND l.group_id = s.group_id AND l.rollout_index = r.rollout_index
LEFT JOIN v_query_credit AS c
    ON c.run = s.run AND c.iteration = s.iteration AND c.rollout_id = s.rollout_id AND c.turn = s.turn;
COMMENT ON VIEW v_queries IS 'Search queries with the outcome of their rollout and the teacher''s credit, one row a query.';
COMMENT ON COLUMN v_queries.num_tokens IS 'Query tokens that the teacher saw; empty when no teacher ran.';

CREATE VIEW v_groups AS
SELECT
    g.run,
    g.iteration,
    g.group_id,
    q.question,
    q.golden_answers,
    g.num_rollouts,
    g.reward_mean,
    g.reward_std,
    g.zero_advantage,
    g.num_distinct_queries,
    count(r.rollout_id) FILTER (l.label = 'CORRECT') AS num_correct,
    count(r.rollout_id) FILTER (l.label = 'INCORRECT') AS num_incorrect,
    list(r.answer ORDER BY r.rollout_index) AS answers,
    list(r.queries ORDER BY r.rollout_index) AS queries_by_rollout,
    list(r.reward ORDER BY r.rollout_index) AS rewards
FROM groups AS g
JOIN rollouts AS r USING (run, iteration, group_id)
LEFT JOIN questions AS q ON q.run = g.run AND q.question_key = g.question_key
LEFT JOIN v_labels AS l
    ON l.run = g.run AND l.iteration = g.iteration
    AND l.group_id = g.group_id AND l.rollout_index = r.rollout_index
GROUP BY ALL;
COMMENT ON VIEW v_groups IS 'Groups with their question and what each sibling did, one row a group.';
COMMENT ON COLUMN v_groups.num_correct IS 'Rollouts labelled CORRECT; 0 when no block was made.';
COMMENT ON COLUMN v_groups.num_incorrect IS 'Rollouts labelled INCORRECT; 0 when no block was made.';
COMMENT ON COLUMN v_groups.answers IS 'The siblings'' answers, in sampling order.';
COMMENT ON COLUMN v_groups.queries_by_rollout IS 'The siblings'' queries, in sampling order.';
COMMENT ON COLUMN v_groups.rewards IS 'The siblings'' rewards, in sampling order.';
