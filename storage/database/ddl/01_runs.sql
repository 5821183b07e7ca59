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
    kind VARCHAR NOT NULL,
    source VARCHAR,
    first_iteration INTEGER NOT NULL,
    iterations_done INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    policy_sha256 VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (run)
);
COMMENT ON TABLE runs IS 'One row a run: its settings and where it stands.';
COMMENT ON COLUMN runs.source IS 'The run that a fork continues from, a replay takes its rollouts from, or an evaluation takes its policy from; empty for a run that trains from the start and for the evaluation of a model.';
COMMENT ON COLUMN runs.first_iteration IS '1, or where a replay or a fork begins.';

CREATE TABLE warnings (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    kind VARCHAR NOT NULL,
    value DOUBLE,
    compared_with DOUBLE,
    text VARCHAR NOT NULL,
    PRIMARY KEY (run, kind)
);
COMMENT ON TABLE warnings IS 'One row a kind of warning that was said of a run: nothing learnt, alarms, rollbacks.';

CREATE TABLE stages (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    stage VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    status VARCHAR NOT NULL,
    input_hash VARCHAR NOT NULL,
    code_hash VARCHAR NOT NULL,
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
    num_ranks INTEGER NOT NULL,
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
        seconds DOUBLE,
        retried STRUCT(query VARCHAR, num_retries BIGINT)[]
    ),
    adopted_from VARCHAR,
    PRIMARY KEY (run, iteration, stage, attempt)
);
COMMENT ON TABLE stages IS 'The ledger: one row an attempt at a stage of an iteration.';
