-- `strikes`: the worker deaths in a row that a step is charged with, a half for each that it shared with others.
-- `reconciling`: the running attempt asks whether an earlier one's effect happened; it is not the tool's body.
ALTER TABLE pickaxe.step
    ADD COLUMN strikes real NOT NULL DEFAULT 0,
    ADD COLUMN reconciling boolean NOT NULL DEFAULT false;

CREATE INDEX step_aside ON pickaxe.step (run_id) WHERE state IN ('unknown', 'quarantined');

-- `family`: the worker that this process belongs to; its main process and what that forked share it. `exit`: how the
-- process ended, where its parent saw it. `held`, `suspects`: the steps it ran when it died, and those among them that
-- had been charged with deaths before.
ALTER TABLE pickaxe.worker
    ADD COLUMN family text NOT NULL DEFAULT '',
    ADD COLUMN exit text,
    ADD COLUMN held integer NOT NULL DEFAULT 0,
    ADD COLUMN suspects integer NOT NULL DEFAULT 0;

CREATE INDEX worker_family ON pickaxe.worker (family);
CREATE INDEX worker_died ON pickaxe.worker (ended_at) WHERE ended = 'died';

-- Reductions under suspicion: that `owner` is reducing the run at this epoch. One that dies in it leaves its row behind.
CREATE TABLE pickaxe.suspect (
    run_id uuid NOT NULL REFERENCES pickaxe.run (id) ON DELETE CASCADE,
    owner text NOT NULL,
    epoch integer NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (run_id, owner)
);

CREATE INDEX suspect_owner ON pickaxe.suspect (owner);

-- For what is deleted by its age.
CREATE INDEX event_created ON pickaxe.event USING brin (created_at);

-- `message`: what it takes to send it again, as JSON; null when it was no message at all, or too large to keep.
ALTER TABLE pickaxe.dead_letter
    ADD COLUMN queue text NOT NULL DEFAULT '',
    ADD COLUMN message text;
