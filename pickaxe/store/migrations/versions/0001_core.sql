CREATE TABLE pickaxe.run (
    id uuid PRIMARY KEY,
    agent text NOT NULL,
    version text NOT NULL,
    state text NOT NULL,
    chapter integer NOT NULL DEFAULT 0,
    epoch integer NOT NULL DEFAULT 0,
    head integer NOT NULL DEFAULT 0,
    wake integer NOT NULL DEFAULT 0,
    queue text NOT NULL,
    priority smallint NOT NULL DEFAULT 5,
    due timestamptz,
    dispatches smallint NOT NULL DEFAULT 0,
    deadline timestamptz,
    input text NOT NULL,
    output text,
    error text,
    published text,
    reason text,
    cancel_seq integer,
    cancel_at timestamptz,
    cancel_reason text,
    timed_out boolean NOT NULL DEFAULT false,
    parent_run uuid,
    parent_step text,
    root uuid NOT NULL,
    idempotency_key text,
    metadata text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    chapter_at timestamptz,
    finished_at timestamptz
) WITH (fillfactor = 80);

CREATE INDEX run_due ON pickaxe.run (due) WHERE due IS NOT NULL;
CREATE INDEX run_deadline ON pickaxe.run (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX run_parent ON pickaxe.run (parent_run) WHERE parent_run IS NOT NULL;
CREATE INDEX run_created ON pickaxe.run (created_at DESC);
CREATE UNIQUE INDEX run_idempotency ON pickaxe.run (agent, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE pickaxe.step (
    run_id uuid NOT NULL REFERENCES pickaxe.run (id) ON DELETE CASCADE,
    key text NOT NULL,
    chapter integer NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    digest text NOT NULL,
    state text NOT NULL,
    queue text,
    priority smallint NOT NULL DEFAULT 5,
    seq integer,
    born integer NOT NULL DEFAULT 0,
    attempt integer NOT NULL DEFAULT 0,
    deaths integer NOT NULL DEFAULT 0,
    owner text,
    ran_by text,
    due timestamptz,
    granted boolean NOT NULL DEFAULT false,
    expires timestamptz,
    total_timeout double precision,
    dispatches smallint NOT NULL DEFAULT 0,
    group_key text,
    index integer NOT NULL DEFAULT 0,
    ordinal integer,
    counted integer,
    failed integer,
    input text NOT NULL,
    options text NOT NULL,
    output text,
    error text,
    reason text,
    progress text,
    history text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (run_id, key)
) WITH (fillfactor = 80);

CREATE INDEX step_due ON pickaxe.step (due) WHERE due IS NOT NULL;
CREATE INDEX step_expires ON pickaxe.step (expires) WHERE expires IS NOT NULL;
CREATE INDEX step_owner ON pickaxe.step (owner) WHERE owner IS NOT NULL;
CREATE INDEX step_blocked ON pickaxe.step (run_id, group_key, index) WHERE state = 'blocked';
CREATE INDEX step_event ON pickaxe.step (name) WHERE kind = 'event' AND state = 'waiting';

CREATE TABLE pickaxe.signal (
    run_id uuid NOT NULL REFERENCES pickaxe.run (id) ON DELETE CASCADE,
    seq integer NOT NULL,
    chapter integer NOT NULL,
    name text NOT NULL,
    payload text NOT NULL,
    idempotency_key text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (run_id, seq)
);

CREATE UNIQUE INDEX signal_idempotency ON pickaxe.signal (run_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE pickaxe.event (
    id uuid PRIMARY KEY,
    key text NOT NULL,
    scope text NOT NULL,
    payload text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX event_key ON pickaxe.event (key, scope, created_at);

CREATE TABLE pickaxe.worker (
    id text PRIMARY KEY,
    slot integer GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    pid integer NOT NULL,
    handles text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    ended text
);

CREATE INDEX worker_alive ON pickaxe.worker (beat_at) WHERE ended_at IS NULL;

CREATE TABLE pickaxe.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reason text NOT NULL,
    body text NOT NULL,
    headers text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE pickaxe.broker (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    incarnation text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
