CREATE VIEW v_steps AS
SELECT
    * EXCLUDE (update_num_tokens),
    grad_norm_sd / nullif(grad_norm_grpo, 0) AS grad_norm_ratio,
    grad_norm_sd / nullif(grad_noise, 0) AS sd_signal_to_noise
FROM update_metrics;
COMMENT ON VIEW v_steps IS 'update_metrics with the ratio of the gradient''s parts, one row an optimiser step.';
COMMENT ON COLUMN v_steps.grad_norm_ratio IS
    'Norm of the distillation gradient over norm of the GRPO gradient: whether distillation acts.';

COMMENT ON COLUMN v_steps.sd_signal_to_noise IS
    'Norm of the distillation gradient over the error that bfloat16 leaves in the gradient, by estimate: below 1 a single step is lost in it.';

CREATE VIEW v_updates AS
SELECT
    run,
    iteration,
    count(*) AS num_steps,
    avg(loss) AS loss,
    avg(policy_loss) AS policy_loss,
    avg(sd_loss) AS sd_loss,
    avg(kl) AS kl,
    max_by(alpha, step) AS alpha,
    max_by(schedule_weight, step) AS schedule_weight,
    avg(entropy) AS entropy,
    avg(grad_norm) AS grad_norm,
    avg(grad_norm_grpo) AS grad_norm_grpo,
    avg(grad_norm_sd) AS grad_norm_sd,
    avg(grad_norm_sd) / nullif(avg(grad_norm_grpo), 0) AS grad_norm_ratio,
    avg(grad_norm_sd) / nullif(avg(grad_noise), 0) AS sd_signal_to_noise,
    avg(sd_clip_factor) AS sd_clip_factor,
    max_by(smoothed_gap, step) AS smoothed_gap,
    avg(clip_share) AS clip_share,
    max(ratio_max) AS ratio_max,
    avg(truncated_share) AS truncated_share,
    avg(sampler_kl) AS sampler_kl,
    min_by(sampler_max_difference, step) AS sampler_max_difference,
    min_by(sampler_kl, step) AS sampler_kl_first_step,
    CAST(sum(num_missing_logprobs) AS BIGINT) AS num_missing_logprobs,
    max_by(learning_rate, step) AS learning_rate,
    any_value(update_num_tokens) AS update_num_tokens
FROM update_metrics
GROUP BY run, iteration;
COMMENT ON VIEW v_updates IS 'Updates, one row an iteration: means over its optimiser steps, unless a column says otherwise.';
COMMENT ON COLUMN v_updates.loss IS 'Mean over the iteration''s steps: {update_metrics.loss}';
COMMENT ON COLUMN v_updates.policy_loss IS 'Mean over the iteration''s steps: {update_metrics.policy_loss}';
COMMENT ON COLUMN v_updates.sd_loss IS 'Mean over the iteration''s steps: {update_metrics.sd_loss}';
COMMENT ON COLUMN v_updates.kl IS 'Mean over the iteration''s steps: {update_metrics.kl}';
COMMENT ON COLUMN v_updates.alpha IS 'Weight of the distillation term in the last step.';
COMMENT ON COLUMN v_updates.schedule_weight IS 'What warm-up and schedule leave of the distillation''s strength, 0 to 1; empty in runs of earlier versions.';
COMMENT ON COLUMN v_updates.sd_clip_factor IS 'Mean over the iteration''s steps: {update_metrics.sd_clip_factor}';
COMMENT ON COLUMN v_updates.smoothed_gap IS 'Moving average of the gap that schedule ''retire'' looks at, nats; empty with other schedules.';
COMMENT ON COLUMN v_updates.entropy IS 'Mean over the iteration''s steps: {update_metrics.entropy}';
COMMENT ON COLUMN v_updates.grad_norm IS 'Mean over the iteration''s steps: {update_metrics.grad_norm}';
COMMENT ON COLUMN v_updates.grad_norm_grpo IS 'Mean over the iteration''s steps: {update_metrics.grad_norm_grpo}';
COMMENT ON COLUMN v_updates.grad_norm_sd IS 'Mean over the iteration''s steps: {update_metrics.grad_norm_sd}';
COMMENT ON COLUMN v_updates.clip_share IS 'Mean over the iteration''s steps: {update_metrics.clip_share}';
COMMENT ON COLUMN v_updates.ratio_max IS 'Largest ratio of the policy''s and the denominator''s probability of a read token, over the steps.';
COMMENT ON COLUMN v_updates.truncated_share IS 'Mean over the iteration''s steps: {update_metrics.truncated_share}';
COMMENT ON COLUMN v_updates.sampler_kl IS 'Mean over the iteration''s steps: {update_metrics.sampler_kl}';
COMMENT ON COLUMN v_updates.learning_rate IS 'Learning rate of the last step.';
COMMENT ON COLUMN v_updates.update_num_tokens IS 'Tokens of the sequences that the iteration''s whole update trained on.';
COMMENT ON COLUMN v_updates.num_steps IS 'Optimiser steps of the iteration.';
COMMENT ON COLUMN v_updates.sampler_max_difference IS 'Largest difference of the sampler''s and the trainer''s log-probability of a read token in the first step, while the weights are still those that sampled, nats.';
COMMENT ON COLUMN v_updates.sampler_kl_first_step IS 'sampler_kl of the first step alone: what the engines differ by, nats per token.';
COMMENT ON COLUMN v_updates.num_missing_logprobs IS 'Read tokens of the iteration without a log-probability of the sampler.';
COMMENT ON COLUMN v_updates.sd_signal_to_noise IS 'Mean norm of the distillation gradient over the error that bfloat16 leaves in the gradient, by estimate; empty under float32 weights.';
COMMENT ON COLUMN v_updates.grad_norm_ratio IS 'Mean norm of the distillation gradient over mean norm of the GRPO gradient.';

CREATE VIEW v_credit AS
SELECT
    run,
    iteration,
    count(*) AS num_credited_tokens,
    avg(jsd) AS mean_jsd,
    avg(gate) AS mean_gate,
    avg(teacher_entropy) AS teacher_entropy,
    avg(student_entropy) AS student_entropy,
    avg(student_entropy - teacher_entropy) AS entropy_gap,
    avg(teacher_logprob - student_logprob) FILTER (outcome = 'CORRECT') AS log_ratio_correct,
    avg(teacher_logprob - student_logprob) FILTER (outcome = 'INCORRECT') AS log_ratio_incorrect
FROM v_token_credit
GROUP BY run, iteration;
COMMENT ON VIEW v_credit IS 'What the teacher says, averaged over an iteration''s distilled tokens.';
COMMENT ON COLUMN v_credit.teacher_entropy IS 'Mean entropy of the teacher''s distributions, nats.';
COMMENT ON COLUMN v_credit.student_entropy IS 'Mean entropy of the student''s distributions, nats.';
COMMENT ON COLUMN v_credit.num_credited_tokens IS 'Distilled tokens.';
COMMENT ON COLUMN v_credit.mean_gate IS 'Mean of what distillation.gate leaves of a distilled token, 0 to 1.';
COMMENT ON COLUMN v_credit.mean_jsd IS 'Mean Jensen-Shannon divergence of teacher and student, nats.';
COMMENT ON COLUMN v_credit.entropy_gap IS 'Mean of student minus teacher entropy, nats.';
COMMENT ON COLUMN v_credit.log_ratio_correct IS
    'Mean of teacher minus student log-probability on tokens of CORRECT rollouts, nats.';
COMMENT ON COLUMN v_credit.log_ratio_incorrect IS
    'Mean of teacher minus student log-probability on tokens of INCORRECT rollouts, nats.';

CREATE VIEW v_hindsight AS
SELECT
    run,
    iteration,
    count(*) AS num_blocks,
    CAST(sum(num_dropped_attempts) AS BIGINT) AS num_dropped_attempts,
    sum(num_dropped_attempts) / nullif(sum(num_attempts + num_dropped_attempts), 0) AS dropped_attempt_share,
    sum(num_shortened_attempts) / nullif(sum(num_attempts + num_dropped_attempts), 0) AS shortened_attempt_share,
    sum(num_cut_tokens) / nullif(sum(num_cut_tokens + len(token_ids)), 0) AS cut_token_share,
    avg((len(token_ids) = 0 OR (num_attempts = 0 AND focal_turn IS NULL))::DOUBLE) AS empty_block_share,
    avg(len(token_ids)) AS block_tokens_mean
FROM hindsight_blocks
GROUP BY run, iteration;
COMMENT ON VIEW v_hindsight IS 'Hindsight blocks, one row an iteration.';
COMMENT ON COLUMN v_hindsight.num_blocks IS 'Hindsight blocks: one a group, or one a rollout or turn where the settings ask for it.';
COMMENT ON COLUMN v_hindsight.num_dropped_attempts IS 'Attempts left out of blocks because not even their labels fitted.';
COMMENT ON COLUMN v_hindsight.dropped_attempt_share IS 'Share of the attempts that were left out of their block.';
COMMENT ON COLUMN v_hindsight.shortened_attempt_share IS 'Share of the attempts whose contents were cut to fit the block.';
COMMENT ON COLUMN v_hindsight.cut_token_share IS 'Share of the whole blocks'' tokens that were cut: what the teacher did not see of its hindsight.';
COMMENT ON COLUMN v_hindsight.empty_block_share IS 'Share of the blocks that show no attempt and no document: nothing is distilled with them.';
COMMENT ON COLUMN v_hindsight.block_tokens_mean IS 'Mean length of a block, tokens.';

CREATE VIEW v_iterations AS
SELECT
    i.run,
    i.iteration,
    m.* EXCLUDE (run, iteration, num_completion_tokens),
    u.* EXCLUDE (run, iteration, update_num_tokens),
    h.* EXCLUDE (run, iteration),
    c.* EXCLUDE (run, iteration),
    s.* EXCLUDE (run, iteration),
    m.num_completion_tokens / nullif(s.sample_s, 0) AS sample_tokens_per_s,
    m.num_completion_tokens / nullif(s.score_s, 0) AS score_tokens_per_s,
    h.num_blocks * h.block_tokens_mean / nullif(s.hindsight_s, 0) AS hindsight_tokens_per_s,
    t.num_tokens / nullif(s.teacher_s, 0) AS teacher_tokens_per_s,
    u.update_num_tokens / nullif(s.update_s, 0) AS update_tokens_per_s,
    e.num_completion_tokens / nullif(s.evaluate_s, 0) AS evaluate_tokens_per_s,
    e.greedy_em,
    e.sampled_em
FROM (SELECT DISTINCT run, iteration FROM stages) AS i
LEFT JOIN iteration_metrics AS m USING (run, iteration)
LEFT JOIN v_updates AS u USING (run, iteration)
LEFT JOIN v_credit AS c USING (run, iteration)
LEFT JOIN v_hindsight AS h USING (run, iteration)
LEFT JOIN (
    SELECT run, iteration, sum(num_tokens) AS num_tokens
    FROM teacher_targets
    GROUP BY run, iteration
) AS t USING (run, iteration)
LEFT JOIN v_stage_seconds AS s USING (run, iteration)
LEFT JOIN (
    SELECT
        run,
        iteration,
        sum(completion_tokens_mean * num_questions) AS num_completion_tokens,
        avg(em) FILTER (mode = 'greedy' AND NOT further) AS greedy_em,
        avg(em) FILTER (mode = 'sampled' AND NOT further) AS sampled_em
    FROM evaluations
    GROUP BY run, iteration
) AS e USING (run, iteration);
COMMENT ON VIEW v_iterations IS 'Everything that people ask of an iteration, one row each: rollouts, update, teacher, seconds, evaluation.';
COMMENT ON COLUMN v_iterations.score_tokens_per_s IS 'Sampled tokens per second of the score stage.';
COMMENT ON COLUMN v_iterations.hindsight_tokens_per_s IS 'Tokens of hindsight blocks per second of the hindsight stage.';
COMMENT ON COLUMN v_iterations.teacher_tokens_per_s IS 'Tokens that the teacher''s and the student''s passes saw, per second of the teacher stage.';
COMMENT ON COLUMN v_iterations.evaluate_tokens_per_s IS 'Sampled tokens of the evaluations per second of the evaluate stage.';
COMMENT ON COLUMN v_iterations.update_tokens_per_s IS 'Tokens of the trained sequences per second of the update stage.';
COMMENT ON COLUMN v_iterations.sample_tokens_per_s IS 'Sampled tokens per second of the sample stage.';
COMMENT ON COLUMN v_iterations.greedy_em IS 'Mean exact match of the evaluation in this iteration, greedy decoding; further sets are left out.';
COMMENT ON COLUMN v_iterations.sampled_em IS 'Mean exact match of the evaluation in this iteration, sampled decoding; further sets are left out.';
