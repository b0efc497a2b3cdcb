-- When the message of what is ready was sent last. Null: no message of it is in the broker, and it is sent when it is due.
ALTER TABLE pickaxe.run ADD COLUMN sent_at timestamptz;
ALTER TABLE pickaxe.step ADD COLUMN sent_at timestamptz;

DROP INDEX pickaxe.run_due;
DROP INDEX pickaxe.step_due;
CREATE INDEX run_due ON pickaxe.run (due) WHERE due IS NOT NULL AND sent_at IS NULL;
CREATE INDEX step_due ON pickaxe.step (due) WHERE due IS NOT NULL AND sent_at IS NULL;
CREATE INDEX run_sent ON pickaxe.run (due) WHERE due IS NOT NULL AND sent_at IS NOT NULL;
CREATE INDEX step_sent ON pickaxe.step (due) WHERE due IS NOT NULL AND sent_at IS NOT NULL;
