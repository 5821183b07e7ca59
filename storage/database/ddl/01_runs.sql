CREATE TABLE workspace (
    schema_version INTEGER NOT NULL,
    created_at TIMESTAMP NOT NULL,
    PRIMARY KEY (schema_version)
);
COMMENT ON TABLE workspace IS 'One row: which layout the tables of this file have.';
COMMENT ON COLUMN workspace.schema_version IS 'Version of the layout; a newer program refuses an older one and says how to go on.';
COMMENT ON COLUMN workspace.created_at IS 'When the file was made, UTC.';

CREATE TABLE runs (
    run VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    settings_json VARCHAR NOT NULL,
    settings_hash VARCHAR NOT NULL,
    code_version VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    num_iterations INTEGER NOT NULL,
    first_iteration INTEGER NOT NULL,
    replay_of VARCHAR,
    fork_of VARCHAR,
    evaluation_of VARCHAR,
    iterations_done INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    policy_sha256 VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (run)
);
COMMENT ON TABLE runs IS 'One row a run: its settings and where it stands.';
COMMENT ON COLUMN runs.run IS 'Name of the run.';
COMMENT ON COLUMN runs.status IS 'running, done, failed or interrupted, as the run itself said last; of a run whose process was killed it says running, and sdsearch runs, which looks at the lock, says dead.';
COMMENT ON COLUMN runs.settings_json IS 'All settings as JSON.';
COMMENT ON COLUMN runs.settings_hash IS 'sha256 of the settings.';
COMMENT ON COLUMN runs.code_version IS 'Version of the program that made the run.';
COMMENT ON COLUMN runs.seed IS 'Seed that every random choice is derived from.';
COMMENT ON COLUMN runs.num_iterations IS 'Iterations asked for.';
COMMENT ON COLUMN runs.first_iteration IS '1, or where a replay or a fork begins.';
COMMENT ON COLUMN runs.replay_of IS 'For a replay: the run that its rollouts are from. Empty for a run that trains.';
COMMENT ON COLUMN runs.fork_of IS 'For a fork: the run whose weights and optimiser, as they were before first_iteration, it goes on with.';
COMMENT ON COLUMN runs.evaluation_of IS 'For a run that only evaluates: run:NAME or model:PATH, whose version policy_version it answers with.';
COMMENT ON COLUMN runs.iterations_done IS 'Iterations whose stages are all done.';
COMMENT ON COLUMN runs.policy_version IS 'Updates behind the current policy.';
COMMENT ON COLUMN runs.policy_sha256 IS 'Hash of the current policy''s trained tensors.';
COMMENT ON COLUMN runs.created_at IS 'UTC.';
COMMENT ON COLUMN runs.updated_at IS 'UTC.';

CREATE TABLE stages (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    stage VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    status VARCHAR NOT NULL,
    input_hash VARCHAR NOT NULL,
    output_hash VARCHAR NOT NULL,
    outputs STRUCT(path VARCHAR, sha256 VARCHAR, size_bytes BIGINT)[] NOT NULL,
    num_rows BIGINT NOT NULL,
    seed BIGINT NOT NULL,
    host VARCHAR NOT NULL,
    pid INTEGER NOT NULL,
    started_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP,
    duration_s DOUBLE NOT NULL,
    error VARCHAR NOT NULL,
    sampling STRUCT(
        sampler VARCHAR,
        num_turns BIGINT,
        num_sampled_tokens BIGINT,
        num_prompt_tokens BIGINT,
        num_cached_tokens BIGINT,
        num_resent_turns BIGINT,
        seconds DOUBLE,
        tokens_per_s DOUBLE,
        cache_hit_share DOUBLE,
        mean_concurrency DOUBLE,
        retrieval_s DOUBLE,
        stalled_s DOUBLE,
        probe_max_difference DOUBLE,
        probe_mean_difference DOUBLE
    ),
    retrieval STRUCT(
        retriever VARCHAR,
        index_hash VARCHAR,
        num_queries BIGINT,
        num_cached BIGINT,
        cache_hit_share DOUBLE,
        num_retries BIGINT,
        seconds DOUBLE
    ),
    adopted_from VARCHAR,
    PRIMARY KEY (run, iteration, stage, attempt)
);
COMMENT ON TABLE stages IS 'The ledger: one row an attempt at a stage of an iteration.';
COMMENT ON COLUMN stages.run IS 'Name of the run.';
COMMENT ON COLUMN stages.iteration IS 'Iteration of the run.';
COMMENT ON COLUMN stages.stage IS 'sample, score, hindsight, teacher, update or evaluate.';
COMMENT ON COLUMN stages.attempt IS '1 for the first attempt at this stage of this iteration.';
COMMENT ON COLUMN stages.status IS 'done, failed, interrupted, or stale: done once, but replaced or its files no longer verify. An attempt has its row when it has ended.';
COMMENT ON COLUMN stages.input_hash IS 'Hash of the upstream outputs, the settings that the stage reads and the code version.';
COMMENT ON COLUMN stages.output_hash IS 'Hash of the output files'' hashes; empty unless done.';
COMMENT ON COLUMN stages.outputs IS 'The stage''s files: path below the workspace, sha256, size in bytes.';
COMMENT ON COLUMN stages.num_rows IS 'Rows in the stage''s own tables.';
COMMENT ON COLUMN stages.seed IS 'Seed of the stage.';
COMMENT ON COLUMN stages.host IS 'Host that ran it.';
COMMENT ON COLUMN stages.pid IS 'Process that ran it.';
COMMENT ON COLUMN stages.started_at IS 'UTC.';
COMMENT ON COLUMN stages.finished_at IS 'UTC; empty when the process died.';
COMMENT ON COLUMN stages.duration_s IS 'Wall-clock seconds; 0 when the process died.';
COMMENT ON COLUMN stages.error IS 'What went wrong; empty when done.';
COMMENT ON COLUMN stages.sampling IS 'What a vLLM engine did in the stage (see v_sampling); empty where none sampled.';
COMMENT ON COLUMN stages.retrieval IS 'What the retriever did in the stage (see v_retrieval); empty where nothing is searched.';
COMMENT ON COLUMN stages.adopted_from IS 'The run whose stage this is, files and all; empty where the work was done in this run.';
