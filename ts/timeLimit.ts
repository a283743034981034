/** Combines a time limit with the caller's signal, because Node 18 has no AbortSignal.any. */

import { TIMER_MAX_MS } from './clock.js';

export class TimeLimit {
  readonly ms: number;
  readonly #controller = new AbortController();
  readonly #caller: AbortSignal | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isOver = false;
  #isEnded = false;

  /** Starts at once. Throws the caller's reason if it is already aborted. Always call `end`. */
  constructor(ms: number, caller: AbortSignal | undefined) {
    caller?.throwIfAborted();
    this.ms = ms;
    this.#caller = caller;
    caller?.addEventListener('abort', this.#abort, { once: true });
    this.restart();
  }

  /** Aborted on timeout or when the caller aborts. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** True on timeout; false if the caller aborted first. */
  get isOver(): boolean {
    return this.#isOver;
  }

  restart(): void {
    if (this.#isEnded) return;
    this.pause();
    this.#timer = setTimeout(this.#expire, Math.min(this.ms, TIMER_MAX_MS));
  }

  pause(): void {
    clearTimeout(this.#timer);
  }

  end(): void {
    this.#isEnded = true;
    this.pause();
    this.#caller?.removeEventListener('abort', this.#abort);
  }

  #expire = (): void => {
    this.#isOver = true;
    this.#controller.abort();
    this.end();
  };

  #abort = (): void => {
    this.end();
    this.#controller.abort(this.#caller?.reason);
  };
}
