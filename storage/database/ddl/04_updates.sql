CREATE TABLE update_metrics (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    step INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    num_rollouts INTEGER NOT NULL,
    num_completion_tokens BIGINT NOT NULL,
    num_read_tokens BIGINT NOT NULL,
    num_distilled_tokens BIGINT NOT NULL,
    loss DOUBLE NOT NULL,
    policy_loss DOUBLE NOT NULL,
    sd_loss DOUBLE NOT NULL,
    kl DOUBLE NOT NULL,
    alpha DOUBLE NOT NULL,
    entropy DOUBLE,
    grad_norm DOUBLE NOT NULL,
    grad_norm_grpo DOUBLE,
    grad_norm_sd DOUBLE,
    grad_noise DOUBLE,
    clip_share DOUBLE,
    ratio_max DOUBLE,
    truncated_share DOUBLE,
    sampler_kl DOUBLE,
    sampler_max_difference DOUBLE,
    num_missing_logprobs BIGINT NOT NULL,
    learning_rate DOUBLE NOT NULL,
    update_num_tokens BIGINT NOT NULL,
    PRIMARY KEY (run, iteration, step)
);
COMMENT ON TABLE update_metrics IS 'One row an optimiser step.';
COMMENT ON COLUMN update_metrics.run IS 'Name of the run.';
COMMENT ON COLUMN update_metrics.iteration IS 'Iteration of the run.';
COMMENT ON COLUMN update_metrics.step IS 'Optimiser steps since the start of the run, this one included.';
COMMENT ON COLUMN update_metrics.policy_version IS 'Version of the weights after the iteration''s whole update.';
COMMENT ON COLUMN update_metrics.num_rollouts IS 'Rollouts of the step.';
COMMENT ON COLUMN update_metrics.num_completion_tokens IS 'Sampled tokens of the step, over which its means are taken.';
COMMENT ON COLUMN update_metrics.num_read_tokens IS 'Sampled tokens that were forwarded: all but those of rollouts whose gradient is exactly zero.';
COMMENT ON COLUMN update_metrics.num_distilled_tokens IS 'Tokens that the distillation term reads.';
COMMENT ON COLUMN update_metrics.loss IS 'policy_loss + kl_coefficient * kl + alpha * sd_loss.';
COMMENT ON COLUMN update_metrics.policy_loss IS 'Clipped surrogate, nats.';
COMMENT ON COLUMN update_metrics.sd_loss IS 'Distillation term before alpha, nats; 0 while alpha is 0.';
COMMENT ON COLUMN update_metrics.kl IS 'k3 estimate of KL(policy || reference), nats per token.';
COMMENT ON COLUMN update_metrics.alpha IS 'Weight of the distillation term.';
COMMENT ON COLUMN update_metrics.entropy IS 'Mean entropy of the policy at the read tokens, nats; empty where none was read.';
COMMENT ON COLUMN update_metrics.grad_norm IS 'Norm of the whole gradient before clipping.';
COMMENT ON COLUMN update_metrics.grad_norm_grpo IS 'Norm of the GRPO part with KL; empty where it was not measured.';
COMMENT ON COLUMN update_metrics.grad_norm_sd IS 'Norm of alpha times the distillation part; empty where it was not measured.';
COMMENT ON COLUMN update_metrics.grad_noise IS 'Error that bfloat16 leaves in the gradient, estimated from grad_norm_grpo; empty under float32 weights, and where the parts were not measured.';
COMMENT ON COLUMN update_metrics.clip_share IS 'Share of the read tokens whose ratio was clipped; empty where none was read.';
COMMENT ON COLUMN update_metrics.ratio_max IS 'Largest ratio of the policy''s and the denominator''s probability of a read token; empty where none was read.';
COMMENT ON COLUMN update_metrics.truncated_share IS 'Share of the read tokens whose importance weight was cut to importance_cap; empty where none was read.';
COMMENT ON COLUMN update_metrics.sampler_kl IS 'k3 estimate of KL(sampler || trainer) at the read tokens, nats per token; empty where none was read.';
COMMENT ON COLUMN update_metrics.sampler_max_difference IS 'Largest difference of the sampler''s and the trainer''s log-probability of a read token, nats; empty where none was read.';
COMMENT ON COLUMN update_metrics.num_missing_logprobs IS 'Read tokens without a log-probability of the sampler; their ratio is taken as 1.';
COMMENT ON COLUMN update_metrics.learning_rate IS 'Learning rate of the step.';
COMMENT ON COLUMN update_metrics.update_num_tokens IS 'Tokens of the sequences that the iteration''s whole update trained on; the same on each of its steps.';
